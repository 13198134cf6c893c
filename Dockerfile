# A small CPU image: the commands of this project, and NVIDIA's tritonserver from PyPI with our ONNX Runtime backend.
#
#   docker build -t repo-builder .
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./model_repository:/work/model_repository:ro repo-builder
#
# It has a `tritonserver` on its PATH as NVIDIA's image does, so it can stand in for that one where there is no GPU:
#   TRITON_IMAGE=repo-builder docker compose -f compose.yaml -f compose.cpu.yaml up

# Any image with Python 3.10 to 3.12, its shared library and its venv module.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

# Triton's Python backend starts `python3` by way of PATH and finds this environment by it.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 XDG_STATE_HOME=/tmp/state
WORKDIR /work

# The dependencies by themselves, so that a change of the code does not download them again.
COPY pyproject.toml /src/
RUN python3 -m venv /opt/venv \
    && python -c 'import tomllib; p = tomllib.load(open("/src/pyproject.toml", "rb"))["project"]; \
print(*p["dependencies"], *p["optional-dependencies"]["server"], sep="\n")' > /src/requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check --requirement /src/requirements.txt

COPY README.md LICENSE /src/
COPY repo_builder /src/repo_builder
COPY client /src/client
COPY container/install_tritonserver.py /src/
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps /src \
    && python /src/install_tritonserver.py /opt /usr/local/bin/tritonserver \
    && rm -rf /src

# The user NVIDIA's image has for those who don't want root (there it is called triton-server).
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["repo-builder", "serve", "--host", "0.0.0.0"]
