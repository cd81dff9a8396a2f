# docker build -f docker/cpu.Dockerfile -t dist_imsr:cpu .
# docker run -it --shm-size=2g -v $PWD/data:/srv/data -v $PWD/runs:/srv/runs dist_imsr:cpu make demo
FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /srv
COPY . .
# The same lines that install on any machine.
RUN make setup DEVICE=cpu
ENV PATH="/srv/.venv/bin:$PATH"
CMD ["python", "launch/doctor.py"]
