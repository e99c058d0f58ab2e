//! The names of all metrics. What other servers have too is called as vLLM calls it, with our prefix; what every process
//! has, as Prometheus' own clients call it.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows while the server runs.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// Durations by size, in seconds.
    Histogram,
}

/// A metric that `/metrics` has.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, prefix and unit included.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// What it says, in a line.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: &$labels, help: $help };
        )*
        /// All of them, in the order in which they are shown.
        pub const ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    // The engine. A sequence is one sample of one prompt.
    ENGINE_UP = Gauge "scone_engine_up" [], "1 while the engine takes requests, 0 once it has stopped.";
    RUNNING = Gauge "scone_num_requests_running" [], "Sequences that have a place in the cache of keys and values.";
    WAITING = Gauge "scone_num_requests_waiting" [], "Sequences that wait for a place.";
    KV_USAGE = Gauge "scone_kv_cache_usage_perc" [], "The share of the cache's blocks that running sequences hold, 0 to 1.";
    KV_BLOCKS = Gauge "scone_kv_cache_blocks" ["state"], "Blocks of the cache: free, kept for later requests that begin alike, held by sequences that run.";
    PREFIX_QUERIES = Counter "scone_prefix_cache_queries_total" [], "Prompt tokens of sequences that got a place.";
    PREFIX_HITS = Counter "scone_prefix_cache_hits_total" [], "Those of them that were not computed, because an earlier sequence began with the same.";
    PREEMPTIONS = Counter "scone_num_preemptions_total" [], "How often a sequence had to give its place up for a while.";
    DRAFTS = Counter "scone_spec_decode_num_draft_tokens_total" [], "Tokens that were guessed ahead.";
    ACCEPTED = Counter "scone_spec_decode_num_accepted_tokens_total" [], "Guessed tokens that were right.";
    STEPS = Counter "scone_engine_steps_total" [], "Forward passes.";
    STEP_TOKENS = Counter "scone_engine_step_tokens_total" [], "Tokens that forward passes computed: of prompts, generated and guessed.";
    STEP_SECONDS = Counter "scone_engine_step_seconds_total" [], "Seconds spent in steps: forward passes and sampling.";
    HOST_SECONDS = Counter "scone_engine_host_seconds_total" [], "Seconds in which the CPU put steps together and asked a GPU for them, of scone_engine_step_seconds_total; rows brought while the GPU computes are not counted. 0 where a CPU computes.";

    // Requests.
    PROMPT_TOKENS = Counter "scone_prompt_tokens_total" [], "Prompt tokens of requests that got their turn; each prompt once, however many samples are taken of it.";
    GENERATION_TOKENS = Counter "scone_generation_tokens_total" [], "Tokens generated.";
    REQUEST_SUCCESS = Counter "scone_request_success_total" ["finished_reason"], "Sequences that ended: stop, length, abort (the client went away, or --request-timeout or the end of the drain cut its answer off), or error (the model failed, or the time in the queue was up).";
    TIME_TO_FIRST_TOKEN = Histogram "scone_time_to_first_token_seconds" [], "From a request's arrival to the first token of each of its sequences.";
    INTER_TOKEN_LATENCY = Histogram "scone_inter_token_latency_seconds" [], "From each token of a sequence to its next.";
    E2E_LATENCY = Histogram "scone_e2e_request_latency_seconds" [], "From a request's arrival to the end of each of its sequences.";
    QUEUE_TIME = Histogram "scone_request_queue_time_seconds" [], "From handing a sequence to the engine until it got a place.";
    PREFILL_TIME = Histogram "scone_request_prefill_time_seconds" [], "From a sequence's place to its first token.";
    DECODE_TIME = Histogram "scone_request_decode_time_seconds" [], "From a sequence's first token to its last.";
    HTTP_REQUESTS = Counter "scone_http_requests_total" ["route", "method", "status"], "HTTP requests that are over; 499 is a client that went away before its answer began.";

    // The table. Matches, rows and times are those of what was computed: cached prompt tokens are not looked up again.
    FGRAM_MATCHES = Counter "scone_fgram_matches_total" ["n"], "Token positions whose longest match was an f-gram of n tokens.";
    FGRAM_POSITIONS = Counter "scone_fgram_positions_total" ["embedding"], "Token positions by what embeds them: an f-gram's row, their own token's, or a special token's.";
    FGRAM_HIT_RATE = Gauge "scone_fgram_hit_rate" [], "The share of all positions since the start that matched an f-gram, 0 to 1.";
    TABLE_OK = Gauge "scone_table_ok" [], "1 while the table's file is whole and unchanged, 0 once it was cut or written into.";
    TABLE_ROWS = Gauge "scone_table_rows" [], "F-grams that have a row.";
    TABLE_BYTES = Gauge "scone_table_bytes" [], "The size of the table's file.";
    TABLE_INFO = Gauge "scone_table_info" ["mode", "dtype"], "1: where the table's rows are kept, and their type.";
    TABLE_RELOADS = Counter "scone_table_reloads_total" [], "How often the table was exchanged while it was served.";
    TABLE_ROWS_READ = Counter "scone_table_rows_read_total" ["tier"], "Rows gathered, by where they came from: the row cache, memory (the page cache included), the disk.";
    TABLE_ROWS_PREFETCHED = Counter "scone_table_rows_prefetched_total" [], "Rows read ahead of their use.";
    TABLE_CACHE_HIT_RATE = Gauge "scone_table_cache_hit_rate" [], "The share of rows that the row cache had since the start, 0 to 1; 0 without a cache.";
    TABLE_ROW_BYTES = Counter "scone_table_row_bytes_total" [], "Bytes of the rows gathered, as they are stored.";
    TABLE_DISK_BYTES = Counter "scone_table_disk_bytes_total" [], "Bytes read from the disk for that.";
    TABLE_GATHERS = Counter "scone_table_gathers_total" [], "Batches of rows gathered.";
    TABLE_LOOKUP_SECONDS = Counter "scone_table_lookup_seconds_total" [], "Seconds spent finding matches.";
    TABLE_GATHER_SECONDS = Counter "scone_table_gather_seconds_total" [], "Seconds spent gathering rows.";

    // The process.
    BUILD_INFO = Gauge "scone_build_info" ["version"], "1: the version of the program.";
    MODEL_INFO = Gauge "scone_model_info" ["model_name", "max_model_len"], "1: the model that is served.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" [], "Seconds of CPU time, user and system.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" [], "Memory in use, mapped files that are read included.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [], "Address space in use.";
    PROCESS_START = Gauge "process_start_time_seconds" [], "When the process began, in seconds since 1970.";
    PROCESS_FDS = Gauge "process_open_fds" [], "Open files and sockets.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [], "The most files and sockets that may be open.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for (i, metric) in ALL.iter().enumerate() {
            assert!(!ALL[..i].iter().any(|other| other.name == metric.name), "{} twice", metric.name);
            assert!(
                metric.name.starts_with("scone_") || metric.name.starts_with("process_"),
                "{}",
                metric.name
            );
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.kind != Kind::Histogram || metric.name.ends_with("_seconds"), "{}", metric.name);
            let is_name =
                |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            assert!(
                is_name(metric.name) && metric.labels.iter().all(|label| is_name(label)),
                "{}",
                metric.name
            );
        }
    }
}
