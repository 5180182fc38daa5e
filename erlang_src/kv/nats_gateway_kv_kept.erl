%% Watchers whose client has lost its connection, and may come back for them.
%%
%% A client that reconnects subscribes to the same subjects again. A nats-server has kept the
%% consumer, which goes on. Here the consumer waits for its client for a while, on the node where it
%% is. It is found by the topic of that subject, and by who the client is.
-module(nats_gateway_kv_kept).

-export([child_specs/0]).
-export([identity/1]).
-export([enter/2]).
-export([keep/2]).
-export([is_over/2]).
-export([release/1]).
-export([find/2]).

-export_type([identity/0, kept/0]).

%% The members of the groups are watchers.
-define(SCOPE, ?MODULE).

-type identity() :: none | binary().

-opaque kept() :: none | {reference(), Groups :: [tuple()]}.

-spec child_specs() -> [supervisor:child_spec()].
child_specs() -> [#{id => ?SCOPE, start => {pg, start_link, [?SCOPE]}}].

%% Two connections have the same identity if they have logged in with the same credentials, under the
%% same settings: a change of these may have changed what the login may do. It shows no credentials.
%% Without a store there is none.
-spec identity(nats_gateway_host:client()) -> identity().
identity(Client = #{config := #{kv := Buckets, digest := Digest, secret := Secret}}) when
    is_map(Buckets)
->
    #{connect := Fields, listener := Listener} = Client,
    Credentials = [
        maps:get(login, Client, none),
        maps:get(certified, Client, none),
        maps:get(peercert, Client, nossl),
        maps:get(cookies, Client, none),
        [{Name, Value} || {Name, Value} <- lists:sort(maps:to_list(Fields)), is_credential(Name)],
        Listener,
        Digest
    ],
    crypto:mac(hmac, sha256, Secret, term_to_binary(Credentials));
identity(#{}) ->
    none.

%% A signature is of a nonce, so it is another one each time.
is_credential(Name) -> lists:member(Name, [user, pass, auth_token, jwt, nkey]).

%% The calling watcher delivers to this topic.
-spec enter(identity(), Topic :: binary()) -> kept().
enter(none, _) ->
    none;
enter(Identity, Topic) ->
    Groups = [{topic, Topic}, {identity, Identity}],
    Monitor = monitor(process, ?SCOPE),
    _ = [join(Group) || Group <- Groups],
    {Monitor, Groups}.

%% The calling watcher waits for its client, if there are not too many of this identity.
-spec keep(kept(), Most :: non_neg_integer()) -> ok | full.
keep(none, _) ->
    full;
keep(Kept, Most) ->
    Group = waiting(Kept),
    case join(Group) andalso length(pg:get_local_members(?SCOPE, Group)) =< Most of
        true ->
            ok;
        false ->
            ok = release(Kept),
            full
    end.

join(Group) ->
    try
        pg:join(?SCOPE, Group, self()) =:= ok
    catch
        exit:_ -> false
    end.

waiting({_, [_, {identity, Identity}]}) -> {waiting, Identity}.

%% This message says that the application ends, and with it all that waits.
-spec is_over(Message :: term(), kept()) -> boolean().
is_over({'DOWN', Monitor, _, _, _}, {Monitor, _}) -> true;
is_over(_, _) -> false.

%% The watcher has a client again.
-spec release(kept()) -> ok.
release(Kept) ->
    try
        _ = pg:leave(?SCOPE, waiting(Kept), self()),
        ok
    catch
        exit:_ -> ok
    end.

%% The watchers of this identity that deliver to the topic.
-spec find(binary(), Topic :: binary()) -> [pid()].
find(Identity, Topic) ->
    try pg:get_local_members(?SCOPE, {topic, Topic}) of
        [] ->
            [];
        Watchers ->
            Own = pg:get_local_members(?SCOPE, {identity, Identity}),
            [Pid || Pid <- Watchers, lists:member(Pid, Own)]
    catch
        error:badarg -> []
    end.
