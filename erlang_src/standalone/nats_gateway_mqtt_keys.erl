%% The subscriptions of a client at its broker. Finds those that a message is for.
%%
%% Each key has its own Subscription Identifier. An identifier is used again only after 2^28 others,
%% so late messages for a dropped one are recognized. Some brokers do not say for which subscription
%% a message is (nats_gateway_probe).
-module(nats_gateway_mqtt_keys).

-export([new/1]).
-export([add/2]).
-export([is_member/2]).
-export([plain_filters/1]).
-export([is_current/3]).
-export([leave/2]).
-export([forget/2]).
-export([key/2]).
-export([receivers/4]).

-export_type([keys/0]).

-type id() :: 1..268435455.

-record(keys, {
    ids = #{} :: #{nats_gateway_host:key() => id()},
    %% has also keys that were left, until the broker confirms that
    keys = #{} :: #{id() => nats_gateway_host:key()},
    next :: id(),
    %% counts messages that do not say for which group they are, so that the groups take turns
    turn = 0 :: non_neg_integer()
}).

-opaque keys() :: #keys{}.

-define(MAX_ID, 268435455).

-spec new(FirstId :: id()) -> keys().
new(First) -> #keys{next = First}.

-spec add(nats_gateway_host:key(), keys()) -> {known | added, id(), keys()}.
add(Key, Keys = #keys{ids = Ids, keys = ById, next = Next}) ->
    case Ids of
        #{Key := Id} ->
            {known, Id, Keys};
        #{} ->
            Id = nats_gateway_mqtt_ids:free(Next, ById, ?MAX_ID),
            {added, Id, Keys#keys{
                ids = Ids#{Key => Id},
                keys = ById#{Id => Key},
                next = nats_gateway_mqtt_ids:following(Id, ?MAX_ID)
            }}
    end.

-spec is_member(nats_gateway_host:key(), keys()) -> boolean().
is_member(Key, #keys{ids = Ids}) -> is_map_key(Key, Ids).

%% The filters of those that are in no shared group.
-spec plain_filters(keys()) -> [Filter :: binary()].
plain_filters(#keys{ids = Ids}) -> [Filter || {undefined, Filter} <- maps:keys(Ids)].

%% Whether the key still has this identifier.
-spec is_current(nats_gateway_host:key(), id(), keys()) -> boolean().
is_current(Key, Id, #keys{ids = Ids}) -> maps:get(Key, Ids, none) =:= Id.

%% What the broker sends before it confirms is still for this key.
-spec leave(nats_gateway_host:key(), keys()) -> {id(), keys()} | error.
leave(Key, Keys = #keys{ids = Ids}) ->
    case maps:take(Key, Ids) of
        {Id, NIds} -> {Id, Keys#keys{ids = NIds}};
        error -> error
    end.

%% The key of the identifier was left.
-spec forget(id(), keys()) -> keys().
forget(Id, Keys = #keys{keys = ById}) -> Keys#keys{keys = maps:remove(Id, ById)}.

-spec key(id(), keys()) -> nats_gateway_host:key() | undefined.
key(Id, #keys{keys = ById}) ->
    case ById of
        #{Id := Key} -> Key;
        #{} -> undefined
    end.

%% The keys that a message with these identifiers is for.
-spec receivers([id()], Topic :: binary(), [nats_gateway_probe:quirk()], keys()) ->
    {[nats_gateway_host:key()], keys()}.
%% If a copy has no identifier, it is for all plain keys that match, or else for one group. If only
%% copies for groups have none, it is for one of the groups.
receivers([], Topic, Quirks, Keys) ->
    {Plain, Groups} = matching(Topic, Keys),
    case Plain =:= [] orelse lists:member(no_shared_identifiers, Quirks) of
        true -> in_turn(Groups, Keys);
        false -> {Plain, Keys}
    end;
receivers(Ids, Topic, Quirks, Keys = #keys{keys = ById}) ->
    Identified = [maps:get(Id, ById) || Id <- lists:usort(Ids), is_map_key(Id, ById)],
    case lists:keymember(undefined, 1, Identified) andalso lists:member(merges, Quirks) of
        true ->
            {Plain, _} = matching(Topic, Keys),
            {lists:usort(Plain ++ Identified), Keys};
        false ->
            {Identified, Keys}
    end.

in_turn([], Keys) ->
    {[], Keys};
in_turn(Groups, Keys = #keys{turn = Turn}) ->
    {[lists:nth(Turn rem length(Groups) + 1, Groups)], Keys#keys{turn = Turn + 1}}.

matching(Topic, #keys{ids = Ids}) ->
    lists:partition(
        fun({Share, _}) -> Share =:= undefined end,
        [Key || Key = {_, Filter} <- maps:keys(Ids), nats_gateway_nif:topic_matches(Filter, Topic)]
    ).
