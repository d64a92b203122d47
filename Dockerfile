# Run so far: the RUN commands below on Debian 12 without Docker (debootstrap); the image itself never.
#   docker build -t detr-jittor . && docker run --gpus all --ipc=host -it detr-jittor python main.py --demo --output_dir output
# CUDA 12.2 with cuDNN 8: for NVIDIA's driver 525 or newer and GPUs up to compute capability 9.0.
FROM nvidia/cuda:12.2.2-cudnn8-devel-ubuntu22.04
RUN apt-get update && apt-get install -qy --no-install-recommends g++ python3-dev python3-venv openmpi-bin libopenmpi-dev openssh-client
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /workspace/detr-jittor
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
