# Job Worker as an image:
#
#   docker build -t job-worker .                                          on Alpine
#   docker build -t job-worker --build-arg RUNTIME=node:20-slim .         on whatever your steps need; it must have a shell
#   docker build -t job-worker:binary --target binary .                   nothing but /job-worker, to copy into your own:
#                                                                         COPY --from=job-worker:binary /job-worker /usr/local/bin/
#   docker buildx build --platform linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6 .
#
# With `--build-arg FEATURES=` it is without TLS, and a megabyte smaller. The program is static, so it runs on every base.
#
# The labels of a released image are those of .ci/labels. .ci/image makes that image, of the released binaries.
ARG RUNTIME=alpine:3

# Always on the builder's own platform: compiling for another one is fast, emulating the compiler is not, and there is no
# compiler image for 32-bit ARM.
FROM --platform=$BUILDPLATFORM rust:1-alpine AS build
ARG TARGETPLATFORM
# mqtts://, which is partly C
ARG FEATURES=tls
# For another platform there is neither a linker nor, for that C, a compiler. Rust brings libc for these targets; the C needs none.
RUN case $TARGETPLATFORM in \
      linux/amd64) target=x86_64-unknown-linux-musl ;; \
      linux/arm64*) target=aarch64-unknown-linux-musl ;; \
      linux/arm/v7) target=armv7-unknown-linux-musleabihf ;; \
      linux/arm/v6) target=arm-unknown-linux-musleabihf ;; \
      *) echo "no Rust target known for '$TARGETPLATFORM'" >&2; exit 1 ;; \
    esac \
 && printf '[build]\ntarget = "%s"\n' "$target" >/cargo.toml \
 && if [ "$target" != "$(rustc -vV | sed -n 's/^host: //p')" ]; then \
      apk add --no-cache lld ${FEATURES:+clang} \
      && rustup target add "$target" \
      && printf '[target.%s]\nlinker = "ld.lld"\n[env]\nTARGET_CC = "clang"\n' "$target" >>/cargo.toml; \
    fi
WORKDIR /src
# The dependencies are a layer of their own, built with an empty program: a change of the source does not rebuild them. Nor does
# one of the benchmarks, which are not here.
COPY Cargo.toml Cargo.lock build.rs ./
RUN sed -i '/^\[\[bench\]\]$/,/^$/d' Cargo.toml \
 && mkdir src && touch src/lib.rs && echo 'fn main() {}' >src/main.rs \
 && cargo --config /cargo.toml build --release --locked --features "$FEATURES"
COPY src src
RUN touch src/lib.rs src/main.rs \
 && cargo --config /cargo.toml build --release --locked --features "$FEATURES" \
 && mkdir -p "/$TARGETPLATFORM" && mv target/*/release/job-worker "/$TARGETPLATFORM/"

FROM scratch AS binary
ARG TARGETPLATFORM
COPY --from=build /$TARGETPLATFORM/job-worker /job-worker
ENTRYPOINT ["/job-worker"]

FROM scratch AS drive
WORKDIR /data

# Steps need a shell, so the default base is not `scratch`.
FROM ${RUNTIME}
COPY --from=binary /job-worker /usr/local/bin/job-worker
# The mount point of the shared drive; a relative workDir starts here. A new volume takes its owner over.
COPY --from=drive --chown=1000:1000 /data /data
WORKDIR /data
# No request may name a directory elsewhere.
ENV JOB_ROOT=/data
# Not root, unless `--user` says otherwise: the first user of most hosts, and `node` in node's images. Where the base has no such
# user, its home would be /.
ENV HOME=/tmp
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/job-worker"]
