-- A history with one entry more: an attempt that did not end its job, and why. The newest 20 stay.
--   select pgqueue.remember(null, 1, now(), 'RETRY', '{"type": "ValueError", "message": "bad"}');
create or replace function pgqueue.remember(
    p_history jsonb, p_attempt integer, p_at timestamptz, p_state text, p_error json
) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_entry jsonb := jsonb_build_object('attempt', p_attempt, 'at', p_at, 'state', p_state);
begin
    begin
        v_entry := v_entry || jsonb_strip_nulls(jsonb_build_object('error', jsonb_build_object(
            'type', p_error ->> 'type', 'module', p_error ->> 'module', 'message', left(p_error ->> 'message', 2000),
            'traceback', right(p_error ->> 'traceback', 4000))));
    exception when data_exception then  -- json may hold what text cannot, such as \u0000
        null;
    end;
    return pgqueue.add_entry(p_history, v_entry);
end
$$;
