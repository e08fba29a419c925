"""What a fit returns and says."""
