# A static router in an empty image. It needs the host's network and processes, /dev/net/tun, a
# /proc/sys that it can write (to switch IPv6 on in containers), and three capabilities;
# docs/running.md says what each is for (--cap-add NET_RAW is for the fast path besides, SYS_NICE for busy hosts):
#
#   docker run -d --name weft --network host --pid host --read-only --device /dev/net/tun \
#     --cap-drop ALL --cap-add NET_ADMIN --cap-add SYS_ADMIN --cap-add SYS_PTRACE \
#     --security-opt systempaths=unconfined \
#     -v /var/run/docker.sock:/var/run/docker.sock -v /var/lib/weft:/var/lib/weft -v /run/weft:/run/weft weft up

# Another image with the compiler, say a mirror's: --build-arg TOOLCHAIN=…
ARG TOOLCHAIN=rust:1.95-bookworm
FROM ${TOOLCHAIN} AS build
WORKDIR /weft
COPY . .
# +crt-static needs an explicit target, so that build scripts and macros stay dynamic. One after the other: built
# together, the router would have the features of the libraries that only the client of Kubernetes wants.
RUN arch="$(uname -m)-unknown-linux-gnu" \
 && export RUSTFLAGS="-C target-feature=+crt-static" \
 && cargo build --locked --release --target "$arch" -p weft --bin weft \
 && install -D "target/$arch/release/weft" /out/usr/bin/weft \
 && cargo build --locked --release --target "$arch" -p weft-kube --bin weft-kube \
 && install -D "target/$arch/release/weft-kube" /out/usr/bin/weft-kube \
 && ln -s weft /out/usr/bin/weft-cni \
 && mkdir -p /out/var/lib/weft /out/run/weft

FROM scratch
COPY --from=build /out /
ENTRYPOINT ["/usr/bin/weft"]
CMD ["up"]
