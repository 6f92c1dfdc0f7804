# SegFormer for PaddleSeg on CPUs:
#   docker build -t segformer . && docker run --rm -v "$PWD:/work" segformer make_scenes
FROM python:3.11-slim-bookworm
# OpenCV loads libGL and GLib, Paddle loads libgomp; the slim image has none of them.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE requirements.txt /source/
COPY paddleseg_segformer /source/paddleseg_segformer
COPY configs /source/configs
RUN cd /source && pip install --no-cache-dir --no-deps -r requirements.txt .
WORKDIR /work
ENTRYPOINT ["segformer"]
