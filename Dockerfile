# The page and the service with an .onnx model: no PyTorch, no root, and nothing is written.  See docs/SERVICE.md.
FROM python:3.12-slim

WORKDIR /app
COPY requirements.txt .
RUN sed '1,/^# To read with an .onnx model/d' requirements.txt > reading.txt \
    && pip install --no-cache-dir --no-compile --root-user-action ignore -r reading.txt
COPY inference.py LICENSE ./
COPY glyphs glyphs
COPY pretrained pretrained
RUN python -m compileall -q inference.py glyphs

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "inference.py", "--serve", "--host", "0.0.0.0"]
