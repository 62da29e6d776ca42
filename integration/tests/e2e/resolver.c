/* Resolves as programs do: by getaddrinfo, or with -x by getnameinfo. A line for each address or name. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static int fail(int code) {
	fprintf(stderr, "%s\n", gai_strerror(code));
	return 1;
}

int main(int argc, char **argv) {
	struct addrinfo hints = {0}, *found, *one;
	char text[NI_MAXHOST];
	int back = argc > 2 && strcmp(argv[1], "-x") == 0, code;
	if (argc < 2)
		return 2;
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_flags = back ? AI_NUMERICHOST : 0;
	if ((code = getaddrinfo(argv[argc - 1], NULL, &hints, &found)))
		return fail(code);
	for (one = found; one; one = one->ai_next) {
		code = getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0,
			back ? NI_NAMEREQD : NI_NUMERICHOST);
		if (code)
			return fail(code);
		puts(text);
	}
	return 0;
}
