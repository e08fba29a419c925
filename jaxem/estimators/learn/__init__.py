"""scikit-learn estimators over `fit`; `jaxem.sklearn` names the public ones."""
