# Serves the model of this repository on a CPU:
#
#   docker build -t scone .
#   docker run --rm -p 8080:8080 scone
#
# Another model: docker run --rm -p 8080:8080 -v /path/to/model:/model:ro scone scone serve /model --listen 0.0.0.0:8080

FROM rust:1-slim-bookworm AS builder
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs ./
COPY benches benches
COPY src src
RUN cargo build --release --locked --bins

# The same Debian as the builder's, so that the C library is the one that was linked against.
FROM debian:bookworm-slim
RUN useradd --system --user-group --no-create-home --shell /usr/sbin/nologin scone
COPY --from=builder /build/target/release/scone /build/target/release/scone-train /usr/local/bin/
# `scone` looks for model_cards/default where it is started. The files stay root's: the server only reads them.
WORKDIR /scone
COPY model_cards/default model_cards/default
COPY model_cards/default-baseline model_cards/default-baseline
USER scone
EXPOSE 8080
# bash opens the connection itself: there is no curl in the image.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r status <&3 && [[ $status == *' 200'* ]]"]
CMD ["scone", "serve", "--listen", "0.0.0.0:8080"]
