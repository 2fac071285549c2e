"""The dashboard's machinery: what is selected, jobs, the cache on disk, figures. `modhifi` never imports it."""
