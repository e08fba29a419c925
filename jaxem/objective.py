from jaxem.analysis.free_energy import *  # noqa: F403 - a public path
