FROM golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# What `worker version` says: --build-arg VERSION=$(git describe --tags --always --dirty)
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w -X github.com/healz/worker/internal/cli.version=$VERSION" -o /worker ./cmd/worker

FROM alpine:3.22
COPY --from=build /worker /usr/local/bin/worker
# The file of the embedded default, used when DATABASE_URL is not set; mount a volume here to keep it.
RUN install -d -o 65532 -g 65532 /data
WORKDIR /data
USER 65532:65532
ENV HTTP_ADDR=0.0.0.0:8080 WORKER_LOG_FORMAT=json
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/readyz"]
ENTRYPOINT ["worker"]
CMD ["run"]
