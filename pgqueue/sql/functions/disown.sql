-- Hand back, untried, the leases of a worker that it does not know of: those whose claim was committed while the
-- connection broke, so that nobody heard of them. A worker calls it when it has connected again. Answers their ids.
--   select pgqueue.disown('<worker>', '{<jobs that it runs>}');
create or replace function pgqueue.disown(p_worker uuid, p_held uuid[]) returns setof uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_back pgqueue.job[];
begin
    with back as (
    update pgqueue.job j
       set worker = null, claimed_at = null, eta = greatest(j.eta, v_now)
     where j.id = any(array(select o.id from pgqueue.job o
                             where o.worker = p_worker and o.id <> all(p_held)
                             order by o.id for update skip locked))
    returning j.*
    )
    select array_agg(b::pgqueue.job) into v_back from back b;
    perform pgqueue.call_idle(array(select b.queue from unnest(v_back) b));
    return query select b.id from unnest(v_back) b;
end
$$;
