//! Charges: what turns cost. Booked by the statements that end an attempt; here they are summed.

use super::Store;
use crate::agent::Spent;

/// Charges that are summed at once.
const SUMMED_MAX: i64 = 20_000;

/// What models were used for, as columns.
#[derive(Debug, Default)]
pub(super) struct ModelColumns {
    pub model: Vec<String>,
    pub input: Vec<i64>,
    pub output: Vec<i64>,
    pub cache_read: Vec<i64>,
    pub cache_write: Vec<i64>,
    pub usd: Vec<f64>,
    /// Whether the agent has said what it cost.
    pub said: bool,
}

impl ModelColumns {
    pub fn of(spent: Option<&Spent>) -> Self {
        let mut columns = Self::default();
        let Some(models) = spent.and_then(|spent| spent.models.as_ref()) else { return columns };
        columns.said = true;
        for used in models {
            columns.model.push(used.model.clone());
            columns.input.push(used.input_tokens);
            columns.output.push(used.output_tokens);
            columns.cache_read.push(used.cache_read_tokens);
            columns.cache_write.push(used.cache_write_tokens);
            columns.usd.push(used.cost_usd);
        }
        columns
    }
}

impl Store {
    /// Brings the roll-up up to date, unless another worker does that now; how many charges it took in. Sums are right
    /// without it: readers add what is not in the roll-up yet.
    pub async fn sum_charges(&self) -> sqlx::Result<i64> {
        let summed = sqlx::query_file_scalar!("src/store/sum_charges.sql", SUMMED_MAX).fetch_optional(&self.pool).await?;
        Ok(summed.unwrap_or(0))
    }
}
