# docker build -f docker/cuda.Dockerfile -t dist_imsr:cuda .
# docker run -it --gpus all --shm-size=8g -v $PWD/data:/srv/data -v $PWD/runs:/srv/runs dist_imsr:cuda make demo DEVICE=cuda
# torch's wheels bring CUDA's libraries; the machine needs the driver and NVIDIA's container toolkit alone.
FROM python:3.12-slim-bookworm
# Triton compiles the kernels of ranks with gcc.
RUN apt-get update && apt-get install --yes --no-install-recommends make git gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /srv
COPY . .
RUN make setup DEVICE=cuda
ENV PATH="/srv/.venv/bin:$PATH"
CMD ["python", "launch/doctor.py"]
