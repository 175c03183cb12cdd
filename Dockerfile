# One image for all services: built with a compiler, run without, as a user without rights.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md ./
COPY basis basis
COPY streaming streaming
COPY paramserver paramserver
COPY trainer trainer
COPY serving serving
COPY minutely minutely
RUN uv venv /opt/minutely && uv pip install --no-cache --python /opt/minutely/bin/python --torch-backend cpu .

FROM python:3.12-slim
RUN useradd --create-home minutely && install -d -o minutely /var/lib/minutely \
    /var/lib/minutely/join-1 /var/lib/minutely/join-2 /var/lib/minutely/deltas /var/lib/minutely/archive
COPY --from=build /opt/minutely /opt/minutely
ENV PATH=/opt/minutely/bin:$PATH
WORKDIR /opt/minutely
USER minutely
ENTRYPOINT ["minutely"]
CMD ["--help"]
