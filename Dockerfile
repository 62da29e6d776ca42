# A static router in an empty image. It needs the host's network, /dev/net/tun and the
# capabilities named in docs/running.md, and no others:
#
#   docker run -d --name weft --network host --pid host --read-only \
#     --cap-drop ALL --cap-add NET_ADMIN --cap-add SYS_ADMIN --cap-add SYS_PTRACE --cap-add DAC_OVERRIDE \
#     --device /dev/net/tun -v /var/lib/weft:/var/lib/weft -v /run/weft:/run/weft weft up
FROM rust:1.95-bookworm AS build
WORKDIR /weft
COPY . .
# +crt-static needs an explicit target, so that build scripts and macros stay dynamic.
RUN arch="$(uname -m)-unknown-linux-gnu" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$arch" --bin weft \
 && install -D "target/$arch/release/weft" /out/usr/bin/weft \
 && mkdir -p /out/var/lib/weft /out/run/weft

FROM scratch
COPY --from=build /out /
ENTRYPOINT ["/usr/bin/weft"]
CMD ["up"]
