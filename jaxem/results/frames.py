"""Data frames of pandas, which is imported when one is asked for."""


def as_frame(columns: dict, index=None):
    """A pandas data frame with these columns by name, and the names of its rows. ImportError where
    pandas is missing."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "to_dataframe needs pandas, which is not installed: pip install pandas"
        ) from error
    return pandas.DataFrame(columns, **({} if index is None else {"index": index}))
