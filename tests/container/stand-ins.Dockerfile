# What docker-compose.yml and deploy/Dockerfile build on, made from Debian's packages and from programs of this machine.
# Each stage is tagged with the name and tag of the image that it stands in for, as docker-compose.yml and deploy/Dockerfile have it.

# For rust: its compiler in a Debian that has a linker.
FROM debian:bookworm-slim AS rust
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates git \
    && rm -rf /var/lib/apt/lists/*
# Networks with an authority of their own need it inside, too.
COPY authorities.crt /etc/ssl/certs/ca-certificates.crt
ADD toolchain.tar /usr/local/toolchain/
ENV PATH=/usr/local/toolchain/bin:$PATH CARGO_HOME=/usr/local/cargo

# For gcr.io/distroless/cc-debian12:nonroot: the packages that it is made of, unpacked, and nothing else.
FROM debian:bookworm-slim AS distroless-root
WORKDIR /packages
RUN apt-get update && apt-get download base-files netbase tzdata libc6 libssl3 openssl libgcc-s1 libgomp1 libstdc++6
RUN mkdir -p /out/var/lib/dpkg/status.d && for package in *.deb; do \
        dpkg-deb --extract "$package" /out && dpkg-deb --field "$package" >"/out/var/lib/dpkg/status.d/${package%%_*}" || exit; \
    done \
    && printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' >/out/etc/passwd \
    && printf 'root:x:0:\nnonroot:x:65532:\n' >/out/etc/group \
    && install -d -o 65532 -g 65532 -m 0700 /out/home/nonroot && install -d /out/etc/ssl/certs
FROM scratch AS distroless
COPY --from=distroless-root /out/ /
COPY authorities.crt /etc/ssl/certs/ca-certificates.crt
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532
WORKDIR /home/nonroot

# For MinIO, with what its health check calls.
FROM debian:bookworm-slim AS minio
COPY minio busybox mc /usr/local/bin/
VOLUME /data
EXPOSE 9000 9001
ENTRYPOINT ["minio"]

# For prom/prometheus.
FROM debian:bookworm-slim AS prometheus
COPY prometheus busybox /bin/
RUN ln -s busybox /bin/wget && install -d -o 65534 -g 65534 /prometheus
USER 65534:65534
WORKDIR /prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]

# For grafana/grafana: serves only its health, and only if it finds what it is provisioned with.
FROM debian:bookworm-slim AS grafana
COPY busybox grafana /bin/
RUN ln -s busybox /bin/wget
EXPOSE 3000
ENTRYPOINT ["/bin/grafana"]
