"""The experiments, one script each; also reached as `leaf-diffusion <command>`."""
