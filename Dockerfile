# The service. A run folder is mounted at /runs; built by: docker build --tag allrec .
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 ALLREC_CACHE=/var/cache/allrec
WORKDIR /app
COPY constraints.txt requirements-offline.txt pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --constraint constraints.txt '.[serve]' \
    && pip install --no-deps --require-hashes --requirement requirements-offline.txt \
    && useradd --create-home --uid 10001 allrec \
    && install -d -o allrec -g allrec /var/cache/allrec /var/lib/allrec
USER allrec
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"
STOPSIGNAL SIGTERM
ENTRYPOINT ["allrec", "serve"]
CMD ["/runs/current", "--host", "0.0.0.0", "--keys"]
