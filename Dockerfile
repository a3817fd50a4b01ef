# autotimm with what it needs, for CPUs and NVIDIA GPUs (docs/docker.md has the commands).
FROM python:3.11-slim

# torch.compile has a C++ compiler build its kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# No process runs as root. The home folder, which has the caches, takes any user of `docker run --user`;
# such a user has no name, which torch.compile asks for.
RUN useradd --create-home --uid 1000 autotimm && chmod 1777 /home/autotimm
ENV HOME=/home/autotimm USER=autotimm PYTHONUNBUFFERED=1

# What autotimm needs is gigabytes, and stays in the cache of the build while the code changes.
WORKDIR /opt/autotimm
COPY pyproject.toml README.md LICENSE ./
COPY autotimm/__init__.py autotimm/
RUN pip install --no-cache-dir '.[s3,tensorboard,export,video]'

COPY autotimm autotimm
COPY launch launch
COPY shards/sample shards/sample
RUN pip install --no-cache-dir --no-deps --force-reinstall .

USER autotimm
WORKDIR /work
ENTRYPOINT ["autotimm"]
CMD ["--help"]
