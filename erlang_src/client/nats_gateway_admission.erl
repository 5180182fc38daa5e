%% The gateway's own login, which comes before the broker's. It decides whether a client is let in,
%% and what the client may do.
%%
%% The log has more about a refusal than the client is told.
-module(nats_gateway_admission).

-export([authenticate/1]).
-export([judge/2]).
-export([leave/1]).
-export([until_session_ends/3]).
-export([deadline/1]).
-export([has_room/3]).
-export([user/2]).
-export([account/1]).
-export([accounts/1]).
-export([jwt_facts/1]).
-export([has_system_access/2]).

-include("nats_gateway.hrl").
-include("nats_gateway_channel.hrl").
-include_lib("kernel/include/logger.hrl").

-export_type([grant/0, verdict/0]).

-type grant() :: #grant{}.

-type verdict() :: nats_gateway_login:verdict() | busy.

-type refusal() ::
    authorization_violation | maximum_account_connections_exceeded | too_many_logins.

%% Comparing a password takes a while. In that case the result has the request for it, and the
%% verdicts for a right and a wrong password.
-spec authenticate(nats_gateway_host:client()) ->
    verdict()
    | {verify, nats_gateway_passwords:request(), Right :: verdict(), Wrong :: verdict()}.
authenticate(Client = #{config := #{login := Login}, peername := {Address, _}}) ->
    Credentials = nats_gateway_connect:credentials(Client),
    case nats_gateway_login:authenticate(Login, Credentials, facts(Client)) of
        {verify, {Given, Hash}, Right, Wrong} ->
            {verify, nats_gateway_passwords:verify(Given, Hash, Address), Right, Wrong};
        Verdict ->
            Verdict
    end.

facts(#{peername := {PeerHost, _}, transport := Transport, nonce := Nonce} = Client) ->
    #{
        certified => is_map_key(certified, Client),
        peerhost => PeerHost,
        transport => Transport,
        nonce => Nonce,
        now => erlang:system_time(millisecond),
        offset => local_offset()
    }.

local_offset() ->
    Local = calendar:datetime_to_gregorian_seconds(calendar:local_time()),
    Local - calendar:datetime_to_gregorian_seconds(calendar:universal_time()).

%% Carries out a verdict. An accepted client keeps its place in its account until `leave/1'.
-spec judge(verdict(), nats_gateway_host:client()) ->
    {ok, nats_gateway_host:client(), grant()} | {error, refusal()}.
judge({ok, Identity}, Client) ->
    case join_account(Identity) of
        ok ->
            {ok, Client#{login => maps:remove(rules, Identity)}, grant(Identity)};
        full ->
            #{account := Account, max_account_connections := Limit} = Identity,
            More = (zero_claims(Identity))#{account => Account, limit => Limit},
            log_refusal(jwt, account_is_full, More, Client),
            {error, maximum_account_connections_exceeded}
    end;
judge(ignore, Client) ->
    {ok, maps:remove(login, Client), #grant{}};
judge({error, {Method, {Reason, Text}}}, Client) ->
    log_refusal(Method, Reason, #{detail => Text}, Client),
    {error, authorization_violation};
judge({error, {Method, Reason}}, Client) ->
    log_refusal(Method, Reason, #{}, Client),
    {error, authorization_violation};
judge(busy, Client) ->
    log_refusal(passwords, too_many_logins, #{}, Client),
    %% This reason has no text of -ERR, so that every client reconnects (nats_gateway_ending).
    {error, too_many_logins}.

join_account(#{account := Account, max_account_connections := Limit}) ->
    nats_gateway_accounts:join(Account, Limit);
join_account(_) ->
    ok.

%% Gives back the client's place in its account, before it logs in again.
-spec leave(nats_gateway_host:client()) -> ok.
leave(#{login := #{account := Account}}) -> nats_gateway_accounts:leave(Account);
leave(_) -> ok.

grant(#{rules := Rules, expires := Expires} = Identity) ->
    #{max_payload := MaxPayload, max_subscriptions := MaxSubscriptions} = Identity,
    #grant{
        permissions = nats_gateway_permissions:new(Rules),
        rules = Rules,
        max_payload = MaxPayload,
        max_subscriptions = MaxSubscriptions,
        deadline =
            case Expires of
                infinity -> infinity;
                {Ms, Reason} -> deadline(Ms, Reason)
            end
    }.

deadline(Ms, Reason) -> {erlang:monotonic_time(millisecond) + Ms, Reason}.

%% The broker's login may end, too. If the gateway's own login has accepted the client, only the end
%% of that login counts.
-spec until_session_ends(nats_gateway_host:session(), nats_gateway_host:client(), grant()) ->
    grant().
until_session_ends(#{expires := Ms}, Client, Grant = #grant{deadline = infinity}) when
    not is_map_key(login, Client)
->
    Grant#grant{deadline = deadline(Ms, user_authentication_expired)};
until_session_ends(_, _, Grant) ->
    Grant.

%% The end of the login, in milliseconds of monotonic time.
-spec deadline(grant()) -> infinity | integer().
deadline(#grant{deadline = infinity}) -> infinity;
deadline(#grant{deadline = {At, _}}) -> At.

%% As in nats-server, a login that leaves no room for another subscription ends the connection. If
%% the gateway's own login has not accepted the client, it may keep the subscriptions that it has.
-spec has_room(Count, Max, nats_gateway_host:client()) -> boolean() when
    Count :: non_neg_integer(), Max :: infinity | non_neg_integer().
has_room(Count, Max, Client = #{login := Login = #{method := Method}}) when Count >= Max ->
    More = (zero_claims(Login))#{limit => Max, subscriptions => Count},
    log_refusal(Method, no_more_subscriptions, More, Client),
    false;
has_room(_, _, #{login := _}) ->
    true;
has_room(Count, Max, _) ->
    Count =< Max.

log_refusal(Method, Reason, More, #{listener := Listener, peername := Peername}) ->
    ok = nats_gateway_census:login_refused(Method, Reason),
    nats_gateway_refusals:may_log(Listener) andalso
        ?LOG_WARNING(More#{
            msg => login_refused,
            method => Method,
            reason => Reason,
            peername => nats_gateway_system:peername(Peername),
            listener => Listener
        }).

%% A JWT that was not made for a nats-server may lack limits that a JWT for a nats-server always
%% has.
zero_claims(#{zero_claims := Claims = [_ | _]}) ->
    #{
        zero_or_missing => iolist_to_binary(lists:join(<<", ">>, Claims)),
        hint => <<"a limit that is missing is 0, as in nats-server; -1 is none">>
    };
zero_claims(_) ->
    #{}.

%% The facts about the client for its own request `$SYS.REQ.USER.INFO'.
-spec user(nats_gateway_host:client(), grant()) -> nats_gateway_system:user().
user(Client = #{sockname := {Host, _}, connect := Fields}, Grant = #grant{rules = Rules}) ->
    Login = maps:get(login, Client, #{}),
    #{
        host => nats_gateway_system:address(Host),
        user => user_name(Login, Fields),
        account => account(Client),
        rules => Rules,
        expires =>
            case deadline(Grant) of
                infinity -> infinity;
                At -> max(0, At - erlang:monotonic_time(millisecond))
            end
    }.

%% The account of a client. As in nats-server, it is `$G' for clients that are in no other.
-spec account(nats_gateway_host:client()) -> binary().
account(#{login := #{account := Account}}) -> Account;
account(_) -> <<"$G">>.

%% Facts of the JWT that a client logged in with, for monitoring.
-spec jwt_facts(nats_gateway_host:client()) ->
    #{jwt | issuer_key | name_tag => binary(), tags => [binary()]}.
jwt_facts(#{login := Login = #{method := jwt, name := Name}}) ->
    (maps:with([jwt, issuer_key, tags], Login))#{name_tag => Name};
jwt_facts(_) ->
    #{}.

%% The accounts that these settings know, without `$G'.
-spec accounts(nats_gateway_config:config()) ->
    #{Key :: binary() => nats_gateway_jwt:account_facts()}.
accounts(#{login := Login}) -> nats_gateway_login:accounts(Login).

%% Whether the client may ask for what a system account may. Only what is proven of it counts.
-spec has_system_access(nats_gateway_host:client(), nats_gateway_host:session()) -> boolean().
has_system_access(Client = #{config := #{system := Access}}, Session) ->
    Proof =
        case {Client, Session} of
            {#{login := Identity}, _} -> Identity;
            {_, #{proven_user := User}} -> {broker, User};
            _ -> none
        end,
    nats_gateway_system_access:has(Proof, Access).

%% A token is a secret, so it is not shown as the name.
user_name(#{nkey := NKey}, _) -> NKey;
user_name(#{method := token}, _) -> <<"[REDACTED]">>;
user_name(#{username := User}, _) -> User;
user_name(_, Fields) -> maps:get(user, Fields, <<>>).
