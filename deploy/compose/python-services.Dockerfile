# The five Python services, one image: docker build -f deploy/compose/python-services.Dockerfile -t tollgate-examples .
FROM python:3.11.13-slim-bookworm AS build
COPY examples/python-services/requirements.txt /requirements.txt
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /requirements.txt

FROM python:3.11.13-slim-bookworm
COPY --from=build /venv /venv
COPY examples/python-services/src /app
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/venv/bin:/usr/bin:/bin
USER 65532:65532
WORKDIR /app
ENTRYPOINT ["/venv/bin/python", "-m", "tollgate_examples"]
CMD ["--help"]
