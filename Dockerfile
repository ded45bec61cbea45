# Builds avspk and runs its demo: a synthetic corpus, preparation, training, evaluation, report.
#
#     docker build -t avspk .
#     docker run --rm -v "$PWD/exp:/avspk/exp" avspk                      # the demo; the report is exp/demo/report.html
#     docker run --rm --gpus all --shm-size 16g -v /data:/data -v "$PWD/exp:/avspk/exp" avspk \
#         accelerate launch tools/train_av.py --config configs/voxceleb2_av.yaml data.train=/data/vox2/manifest.parquet
#
# CUDA comes with torch's wheel; the host needs NVIDIA's driver and container toolkit.
FROM python:3.11-slim-bookworm

# Every Python dependency is a wheel (x86-64) that needs no system package.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make=4.3-* \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /avspk
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# The dependencies are a layer of their own: a change of the code does not download them again.
COPY pyproject.toml Makefile README.md LICENSE ./
RUN mkdir avspk && touch avspk/__init__.py && make setup EXTRAS=all

COPY . .
ENV PATH="/avspk/.venv/bin:$PATH"

# Files in mounted folders do not belong to root; for another user than 1000: docker run --user "$(id -u)".
# That user, too, writes data/demo.
RUN useradd --create-home --uid 1000 avspk && mkdir -p data exp && chmod 1777 data exp
USER 1000

CMD ["make", "demo", "EXTRAS=all"]
