# BINARY=build compiles the worker. A release has compiled it for each platform already, and gives BINARY=released.
ARG BINARY=build

FROM golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# What `worker version` says: --build-arg VERSION=$(git describe --tags --always --dirty)
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w -X github.com/healz/worker/internal/cli.version=$VERSION" -o /worker ./cmd/worker

FROM scratch AS released
ARG TARGETPLATFORM
COPY $TARGETPLATFORM/worker /worker

FROM ${BINARY} AS binary

FROM alpine:3.22
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="worker" \
  org.opencontainers.image.description="Event-sourcing worker: event store, relay, handlers, dead letters, console" \
  org.opencontainers.image.source="https://github.com/healz/worker" \
  org.opencontainers.image.licenses="MIT" \
  org.opencontainers.image.version="$VERSION" \
  org.opencontainers.image.revision="$REVISION"
COPY --from=binary /worker /usr/local/bin/worker
# The file of the embedded default, used when DATABASE_URL is not set; mount a volume here to keep it.
RUN install -d -o 65532 -g 65532 /data
WORKDIR /data
USER 65532:65532
# The console is served only with a WORKER_CONSOLE_TOKEN, as all addresses are no loopback address. /readyz is no health check
# of a container: an outage of the broker would make every worker unhealthy, and a restart mends nothing.
ENV HTTP_ADDR=0.0.0.0:8080 WORKER_LOG_FORMAT=json
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["worker", "health"]
ENTRYPOINT ["worker"]
CMD ["run"]
