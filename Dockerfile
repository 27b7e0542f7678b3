# An image that holds the program and nothing else, for `kubectl debug`, for a sidecar, or for `docker run --pid=...`:
#
#   docker build -t wstate .
#   docker run --rm --pid=container:APP --cap-add=SYS_PTRACE wstate attach 1
#   kubectl debug -it POD --image=wstate --target=APP --profile=general -- /wstate attach 1
#
# `sh tests/package.sh` runs the build command below as it stands here, and the program in an empty root.
FROM rust:1.88-slim-bookworm AS build
WORKDIR /src
RUN rustup target add x86_64-unknown-linux-musl
COPY . .
RUN mkdir -p /image && mkdir -m 1777 /image/tmp
RUN cargo build --locked --profile dist --package wstate --bin wstate --target x86_64-unknown-linux-musl

FROM scratch
COPY LICENSE-APACHE LICENSE-MIT /
COPY --from=build /src/target/x86_64-unknown-linux-musl/dist/wstate /wstate
# /tmp, for files that are made while an answer is written.
COPY --from=build /image/ /
ENV PATH=/
ENTRYPOINT ["/wstate"]
