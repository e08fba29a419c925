from jaxem.analysis.topics import *  # noqa: F403 - a public path
