#!/usr/bin/env bash
# Prints the JAX that this machine needs (cpu, cuda12, cuda13 or tpu), followed by the reason.
#
#   bash launch/detect_jax.sh [ROOT]
#
# ROOT: look for devices under this folder instead of / (for tests).

set -euo pipefail
root=${1:-}

# Looks for a TPU chip on the PCI bus (vendor Google), by the device ids that JAX itself checks. /dev/vfio alone is not
# enough, because every machine that passes a device through to a virtual machine has it.
has_tpu() {
  local vendor
  for vendor in "$root"/sys/bus/pci/devices/*/vendor; do
    [ -r "$vendor" ] && [ "$(cat "$vendor")" = 0x1ae0 ] || continue
    case "$(cat "${vendor%vendor}device")" in
      0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076) return 0 ;;
    esac
  done
  # A container may hide the bus; then the variables of the TPU runtime and the device files decide.
  [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}${TPU_ACCELERATOR_TYPE:-}" ] || return 1
  [ -e "$root/dev/accel0" ] || [ -e "$root/dev/vfio/0" ]
}

# Prints a line "driver, compute capability" per GPU. Without nvidia-smi, only the kernel's driver version is known.
nvidia_gpus() {
  nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null && return
  [ -e "$root/dev/nvidiactl" ] && [ -r "$root/proc/driver/nvidia/version" ] || return 0
  sed -n 's/^NVRM version:.* \([0-9][0-9]*\.[0-9.]*\) .*/\1, unknown/p' "$root/proc/driver/nvidia/version"
}

# CUDA 13 needs driver 580 and compute capability 7.5 (Turing); CUDA 12 needs driver 525, and JAX's build of it needs
# capability 5.2. CUDA 12 also runs on newer GPUs and drivers, so it is chosen if the capability is unknown.
choose_cuda() {
  local driver capability number variant="" reason="no NVIDIA GPU and no TPU was found"
  while IFS=', ' read -r driver capability; do
    case "${driver%%.*}" in
      "" | *[!0-9]*) continue ;; # a message, not a row
    esac
    number=$(printf '%s' "$capability" | sed -n 's/^\([0-9][0-9]*\)\.\([0-9]\)$/\1\2/p')
    if [ "${driver%%.*}" -lt 525 ]; then
      reason="NVIDIA driver $driver is too old for JAX, which needs 525 or newer"
    elif [ "${number:-52}" -lt 52 ]; then
      [ -n "$variant" ] || reason="an NVIDIA GPU of compute capability $capability is too old for JAX, which needs 5.2"
    else
      reason="NVIDIA driver $driver"
      if [ "${driver%%.*}" -ge 580 ] && [ "${number:-0}" -ge 75 ] && [ "$variant" != cuda12 ]; then
        variant=cuda13
      else
        variant=cuda12
      fi
    fi
  done
  echo "${variant:-cpu} $reason"
}

if [ "$(uname -s)" != Linux ]; then
  echo "cpu $(uname -s)"
elif has_tpu; then
  echo "tpu a TPU was found"
else
  nvidia_gpus | choose_cuda
fi
