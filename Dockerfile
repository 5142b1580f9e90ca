# The programs of Tollgate, one image: docker build -t tollgate .
# Static binaries on an empty file system, run by nobody in particular; nothing in it can be written to.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags="-s -w" -o /out/bin/ ./cmd/... \
 && mkdir -p /out/etc/tollgate /out/var/lib/tollgate /out/tmp \
 && cp -r config/. /out/etc/tollgate/ \
 && rm -rf /out/etc/tollgate/prometheus /out/etc/tollgate/grafana

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /usr/share/zoneinfo /usr/share/zoneinfo
COPY --from=build /out/bin/ /bin/
COPY --from=build /out/etc/ /etc/
# The one place that a volume may be mounted on; empty, so that a new volume belongs to the user below.
COPY --from=build --chown=65532:65532 /out/var/lib/tollgate /var/lib/tollgate
COPY LICENSE /LICENSE
USER 65532:65532
WORKDIR /etc/tollgate
# What to run is always said: authz, ratelimit, pyproxy or tollgate. There is no shell to find it with.
ENTRYPOINT []
CMD ["/bin/tollgate", "help"]
