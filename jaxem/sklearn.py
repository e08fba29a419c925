from jaxem.estimators.learn.public import *  # noqa: F403 - a public path
