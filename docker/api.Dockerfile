# The control plane: API, migrations and sweep. No torch.
FROM python:3.12-slim AS build
RUN pip install --no-cache-dir uv
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY backend ./backend
COPY migrations ./migrations
RUN uv venv /venv \
    && uv pip install --python /venv/bin/python --compile-bytecode -c requirements.lock -e '.[api]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home fedbraid
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER fedbraid
EXPOSE 8000
CMD ["uvicorn", "backend.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--no-access-log"]
