# The image that deploy/Dockerfile builds in, with a program that is built already: `cargo build` puts it where it would be.
ARG BUILD_IMAGE
FROM ${BUILD_IMAGE}
COPY program /usr/local/with-program/cairn
RUN mkdir -p /usr/local/with-program/bin && ln -s "$(command -v cargo)" /usr/local/with-program/cargo \
    && printf '%s\n' '#!/bin/sh' '[ "$1" = build ] || exec /usr/local/with-program/cargo "$@"' \
        'exec install -D /usr/local/with-program/cairn target/release/cairn' >/usr/local/with-program/bin/cargo \
    && chmod 755 /usr/local/with-program/bin/cargo
ENV PATH=/usr/local/with-program/bin:$PATH
