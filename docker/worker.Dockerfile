# Everything that touches tensors. Without TORCH_OPTIONS torch comes in its build for NVIDIA GPUs.
FROM python:3.12-slim AS build
ARG TORCH_OPTIONS=--torch-backend=cpu
RUN pip install --no-cache-dir uv
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN uv venv /venv \
    && uv pip install --python /venv/bin/python ${TORCH_OPTIONS} torch==2.13.0
COPY backend ./backend
COPY worker ./worker
RUN uv pip install --python /venv/bin/python --compile-bytecode -c requirements.lock -e '.[worker,vision]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home fedbraid \
    && install --directory --owner fedbraid --mode 700 /state
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER fedbraid
CMD ["celery", "--app", "worker.celery_app", "worker", "--pool", "solo", "--queues", "train", "--include", "worker.readiness"]
