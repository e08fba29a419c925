from jaxem.analysis.plot import *  # noqa: F403 - a public path
