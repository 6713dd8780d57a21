#!/usr/bin/env bash
# Makes one host of a TPU slice ready for edlm; tpu_vm.sh runs it on each. Run again, it repeats nothing.
#
#   bash edlm_jax/launch/tpu_vm_host.sh [BUCKET]     a bucket is mounted as /mnt/edlm
set -euo pipefail
cd "$HOME"
BUCKET=${1:-}

# The image's own Python is older than edlm needs.
[[ -x .local/bin/uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
[[ -x .edlm/bin/python ]] || .local/bin/uv venv --quiet --python=3.12 .edlm
.local/bin/uv pip install --quiet --python=.edlm './edlm_jax[tpu]'

[[ $BUCKET ]] || exit 0
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq -y gcsfuse
fi
sudo mkdir -p /mnt/edlm
sudo chown "$USER" /mnt/edlm
# Nothing about files is cached: processes look for each other's files.
mountpoint -q /mnt/edlm || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$BUCKET" /mnt/edlm
