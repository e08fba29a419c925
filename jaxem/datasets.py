from jaxem.data.datasets import *  # noqa: F403 - a public path
