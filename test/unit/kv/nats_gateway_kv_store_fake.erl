%% A store in a table. Whoever writes tells those who have subscribed.
-module(nats_gateway_kv_store_fake).

-behaviour(nats_gateway_kv_store).

-export([new/0, set/4, remove/3, quietly/2]).
-export([where/0, open/2, hand_over/2, read/2, write/4, fold/4, subscribe/2, change/2]).

new() -> {?MODULE, ets:new(?MODULE, [public, ordered_set])}.

%% An MQTT client publishes with this revision.
set(Topic, Revision, Payload, {_, Table}) ->
    Value = #{revision => Revision, at => Revision, headers => undefined, payload => Payload},
    true = ets:insert(Table, {Topic, Value}),
    tell({changed, put, Topic, Value}, Table).

remove(Topic, Revision, {_, Table}) ->
    true = ets:delete(Table, Topic),
    Headers = nats_gateway_kv_answer:deleted(<<"DEL">>),
    Value = #{revision => Revision, at => Revision, headers => Headers, payload => <<>>},
    tell({changed, delete, Topic, Value}, Table).

%% Nobody is told: the value has expired, or the message is still on its way.
quietly({set, Topic, Revision, Payload}, {_, Table}) ->
    Value = #{revision => Revision, at => Revision, headers => undefined, payload => Payload},
    true = ets:insert(Table, {Topic, Value});
quietly({remove, Topic}, {_, Table}) ->
    true = ets:delete(Table, Topic).

tell(Message, Table) ->
    lists:foreach(
        fun({_, Pid, Filter}) ->
            {changed, _, Topic, _} = Message,
            nats_gateway_nif:topic_matches(Filter, Topic) andalso (Pid ! Message)
        end,
        [Entry || Entry <- ets:tab2list(Table), element(1, element(1, Entry)) =:= subscriber]
    ).

where() -> gateway.

open(_, Table) ->
    case ets:lookup(Table, refuses) of
        [] -> {Table, none};
        [{refuses, Failure}] -> throw({store, Failure})
    end.

hand_over(Table, Table) -> Table.

read(Topics, Table) ->
    [
        case ets:lookup(Table, Topic) of
            [{_, Value}] -> {ok, Value};
            [] -> none
        end
     || Topic <- Topics
    ].

write(Topic, Expected, Write, Table) ->
    Last =
        case read([Topic], Table) of
            [{ok, #{revision := Revision}}] -> Revision;
            [none] -> 0
        end,
    case Expected =:= any orelse Expected =:= Last of
        false ->
            {error, {wrong_last, Last}};
        true ->
            Next = Last + 100,
            case Write of
                {put, _, Payload, _} -> set(Topic, Next, Payload, {?MODULE, Table});
                {delete, _} -> remove(Topic, Next, {?MODULE, Table})
            end,
            {ok, Next}
    end.

fold(Filter, Fun, Acc, Table) ->
    lists:foldl(
        fun({Topic, Value = #{payload := Payload}}, Inner) ->
            Fun(Topic, (maps:with([revision, at], Value))#{size => byte_size(Payload)}, Inner)
        end,
        Acc,
        [
            Entry
         || Entry = {Topic, _} <- ets:tab2list(Table),
            is_binary(Topic),
            nats_gateway_nif:topic_matches(Filter, Topic)
        ]
    ).

subscribe(Filter, Table) ->
    true = ets:insert(Table, {{subscriber, make_ref()}, self(), Filter}),
    ok.

change({changed, Kind, Topic, Value}, _) -> {Kind, Topic, Value};
change(_, _) -> ignore.
