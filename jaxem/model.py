from jaxem.protocol.model import *  # noqa: F403 - a public path
