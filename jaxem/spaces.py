from jaxem.protocol.spaces import *  # noqa: F403 - a public path
