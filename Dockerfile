# Weight Ledger: one image for the writer, its followers and the commands. CPU torch.
#
#     docker build -t weightledger .
#     docker run -e WEIGHTLEDGER_API_KEY=… -e WEIGHTLEDGER_DATABASE=postgresql+psycopg://… -p 2242:2242 weightledger

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE MANIFEST.in ./
COPY src ./src
COPY ledger ./ledger
COPY rules ./rules
COPY api ./api
COPY migrations ./migrations
RUN python -m venv /opt/weightledger
# By itself first, from the index of CPU builds: the default one brings CUDA's 3 GB.
RUN /opt/weightledger/bin/pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
RUN /opt/weightledger/bin/pip install --no-cache-dir -c constraints.txt .[transformers]

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home weightledger && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=build /opt/weightledger /opt/weightledger
ENV PATH=/opt/weightledger/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    HOME=/tmp \
    WEIGHTLEDGER_DATA_DIR=/data \
    WEIGHTLEDGER_HOST=0.0.0.0
WORKDIR /data
USER 10001:10001
EXPOSE 2242
ENTRYPOINT ["weightledger"]
CMD ["serve"]
