-- A step whose members have all succeeded as a job for enqueue_many; p_values is the list of their values, p_parent the
-- member that ended last.
--   select pgqueue.step_call(s, '[5]', '<job>') from pgqueue.step s where id = '<step>';
create or replace function pgqueue.step_call(p_step pgqueue.step, p_values json, p_parent uuid) returns json
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select pgqueue.json_with(p_step.call, json_build_object(
               'id', p_step.id, 'known', true, 'checked', true,
               'args', case p_step.takes when 'nothing' then pgqueue.concat_arrays(null, p_step.call -> 'args')
                            when 'value' then pgqueue.concat_arrays(p_values, p_step.call -> 'args')
                            else pgqueue.concat_arrays(json_build_array(p_values), p_step.call -> 'args') end,
               'parent_id', p_parent, 'root_id', p_step.root_id, 'steps', p_step.steps, 'place', p_step.place,
               'depth', p_step.depth));
$$;
