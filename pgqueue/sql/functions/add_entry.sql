-- A history with this entry at its end; of more than 20 the oldest are dropped.
--   select pgqueue.add_entry('[{"attempt": 1, "state": "RETRY"}]', '{"attempt": 2, "state": "CRASH"}');
create or replace function pgqueue.add_entry(p_history jsonb, p_entry jsonb) returns jsonb
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select case when jsonb_array_length(p_history) >= 20 then p_history - 0 else coalesce(p_history, '[]') end
           || jsonb_build_array(p_entry);
$$;
