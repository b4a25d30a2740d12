# The Streamlit pages; they know the address of the API and no secret.
FROM python:3.12-slim AS build
RUN pip install --no-cache-dir uv
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY backend ./backend
COPY dashboard ./dashboard
RUN uv venv /venv \
    && uv pip install --python /venv/bin/python --compile-bytecode -c requirements.lock -e '.[dashboard]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home fedbraid
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER fedbraid
EXPOSE 8501
CMD ["streamlit", "run", "dashboard/streamlit_app.py", "--server.address", "0.0.0.0", "--server.port", "8501"]
