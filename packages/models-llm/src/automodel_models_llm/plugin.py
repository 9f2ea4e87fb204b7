"""What this plugin brings to AutoModel."""

from automodel import Provider, hookimpl
