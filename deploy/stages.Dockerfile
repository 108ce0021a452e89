# Made by `hearthline render image`. For roles whose stages are in Python or SQL; build it in this folder:
#   docker build -t hearthline-stages .
# HEARTHLINE is the static image, of which the binary is taken. PYTHON is any with Python 3.10 or later and venv.
ARG HEARTHLINE={{.Base}}
ARG PYTHON=python:3.13-slim
FROM ${HEARTHLINE} AS hearthline

FROM ${PYTHON}
COPY --from=hearthline {{.Binary}} {{.Binary}}
COPY --from=hearthline /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A named volume takes its owner from the folder it is mounted over.
COPY --from=hearthline --chown={{.User}}:{{.User}} {{.Data}} {{.Data}}
RUN mkdir -p /opt/hearthline/cache /opt/hearthline/stages && chown {{.User}}:{{.User}} /opt/hearthline/cache
{{- if .Stages}}
COPY stages /opt/hearthline/stages
{{- end}}
ENV HEARTHLINE_CACHE=/opt/hearthline/cache HEARTHLINE_STAGES=/opt/hearthline/stages HEARTHLINE_DATA={{.Data}} HEARTHLINE_OPS=0.0.0.0:{{.Ops}} HOME=/tmp PIP_NO_CACHE_DIR=1
USER {{.User}}:{{.User}}
WORKDIR {{.Data}}
# Environments are made now, and every stage is loaded once: a start needs no network, and no disk that it can write.
RUN ["{{.Binary}}", "environments"{{if .SQL}}, "--sql"{{end}}]
EXPOSE {{.Ops}}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["{{.Binary}}", "health"]
ENTRYPOINT ["{{.Binary}}"]
CMD ["--help"]
