"""Every `leaf-diffusion <command>`."""
